"""Real photos and prose out of the scikit-image and scikit-learn wheels."""

import re
from pathlib import Path
from string import ascii_letters

from examples.registry import Package

SCIKIT_IMAGE = Package(
    "scikit-image",
    "0.26.0",
    {
        "skimage/data/astronaut.png": (
            "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5"
        ),
        "skimage/data/chelsea.png": (
            "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb"
        ),
        "skimage/data/coffee.png": (
            "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7"
        ),
        "skimage/data/ihc.png": (
            "f8dd1aa387ddd1f49d8ad13b50921b237df8e9b262606d258770687b0ef93cef"
        ),
        "skimage/data/motorcycle_left.png": (
            "db18e9c4157617403c3537a6ba355dfeafe9a7eabb6b9b94cb33f6525dd49179"
        ),
        "skimage/data/page.png": (
            "341a6f0a61557662b02734a9b6e56ec33a915b2c41886b97509dedf2a43b47a3"
        ),
        "skimage/data/text.png": (
            "bd84aa3a6e3c9887850d45d606c96b2e59433fbef50338570b63c319e668e6d1"
        ),
        "skimage/data/hubble_deep_field.jpg": (
            "3a19c5dd8a927a9334bb1229a6d63711b1c0c767fb27e2286e7c84a3e2c2f5f4"
        ),
        "skimage/data/retina.jpg": (
            "38a07f36f27f095e818aea7b96d34202c05176d30253c66733f2e00379e9e0e6"
        ),
        "skimage/data/rocket.jpg": (
            "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c"
        ),
    },
)
SCIKIT_LEARN = Package(
    "scikit-learn",
    "1.9.1",
    {
        "sklearn/datasets/images/china.jpg": (
            "8378025ad2519d649d02e32bd98990db4ab572357d9f09841c2fbfbb4fefad29"
        ),
        "sklearn/datasets/images/flower.jpg": (
            "a77f6ec41e353afdf8bdff2ea981b2955535d8d83294f8cfa49cf4e423dd5638"
        ),
        "sklearn/datasets/descr/breast_cancer.rst": (
            "3c5855182a44d12c91f1fb27388741fb70b4b92ba40fb742dca9b5e404c68f19"
        ),
        "sklearn/datasets/descr/covtype.rst": (
            "0ba0e67338ad8ed9eb3be5e10888bc5aa353d2e3e06273d6358b4ac094f0727e"
        ),
        "sklearn/datasets/descr/diabetes.rst": (
            "07dcfc13957a82485bdfce44aecffba72e7977595966d118b81f162cb827e381"
        ),
        "sklearn/datasets/descr/digits.rst": (
            "8e7e58d612958f7d9b0de1931ed68b211703eeb239e808f3d82c5f0837cc0222"
        ),
        "sklearn/datasets/descr/iris.rst": (
            "71f86749a8bc528d21b7db0f95332e3230d13231a05c2720e537b2c5aa8ef5e9"
        ),
        "sklearn/datasets/descr/kddcup99.rst": (
            "a91cf65fc5e6521f0864a8f34f538025de6c8fdd5b068d31a5d715e6b4b6264a"
        ),
        "sklearn/datasets/descr/lfw.rst": (
            "f2c8fc0293306431da6e76a4b0be12f961d2d55fa4f9d8af53b0c63c958fec0c"
        ),
        "sklearn/datasets/descr/linnerud.rst": (
            "8c323e008b15799653555592894ceda799442f81f6bacf38edb805dc54866f5b"
        ),
        "sklearn/datasets/descr/olivetti_faces.rst": (
            "8bc63bfa0e1f38f74bbeea6027c8bfcded69034846a5f0e00283c21af08f1712"
        ),
        "sklearn/datasets/descr/rcv1.rst": (
            "98b8f8594eda115a9a260ee181249ef35a08ef82fafe9184091ef63bc744319e"
        ),
        "sklearn/datasets/descr/species_distributions.rst": (
            "2fcd1e68b71bf72989399c852e84210f2914f5dc22a2e4454530fefc8aca16c2"
        ),
        "sklearn/datasets/descr/twenty_newsgroups.rst": (
            "67979f1b8fa67444f81f8b17802b77ec81cbd3c114cca6e7b9c075f74a3f183f"
        ),
        "sklearn/datasets/descr/wine_data.rst": (
            "cece974be57e7279fddb09f3ffaccc26cf0c20087f29a9641a17756c52e25301"
        ),
        "sklearn/datasets/data/breast_cancer.csv": (
            "fed3eb72d0575ef6192293f5093c6e801b1476b577d0386bf4455504522172ed"
        ),
    },
)


_MARKUP = re.compile(r"[=\-~]{4}|>>>|::|http")


def prose(document: Path) -> list[str]:
    """Take the English paragraphs out of a reStructuredText file.

    Args:
        document: a UTF-8 file.

    Returns:
        Its paragraphs on one line each, without headings, tables, lists, directives and markup.
    """
    paragraphs = re.split(r"\n\s*\n", document.read_text(encoding="utf-8"))
    kept = []
    for paragraph in paragraphs:
        text = re.sub(r":[a-z:]+:`[~.]*([^`]*)`", r"\1", " ".join(paragraph.split()))
        text = re.sub(r"`([^`<]*?) ?<[^>]*>`_*|[`*|]", r"\1", text)
        if len(text) > 40 and text[0] in "-" + ascii_letters and not _MARKUP.search(text):
            kept.append(text)
    return kept
