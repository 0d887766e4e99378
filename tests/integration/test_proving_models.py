import numpy as np
import onnx
import onnxruntime as ort
import pytest
from examples.page_orientation import pages
from tests.proving import light, models, words

pytestmark = pytest.mark.models

# Rows that the trained models get right; the rest of the 32 lines are too faint for `ppocr-cls`.
RIGHT = {
    "page-orientation": 32,
    "page-orientation-qdq": 32,
    "ppocr-cls": 28,
    "ppocr-cls-half": 28,
    "magika": 23,
}


def answers(model, rows):
    """One flat float64 array per output: [rows, values]."""
    options = ort.SessionOptions()
    options.log_severity_level = 3  # an unused initializer in the shipped networks
    session = ort.InferenceSession(model.path(), options)
    made = [session.run(None, row) for row in rows]
    return [np.stack([row[k].ravel() for row in made]).astype(float) for k in range(len(made[0]))]


def is_varied(output):
    """Whether rows differ by more than rounding: a proof on them means something."""
    return np.abs(output - output.mean(axis=0)).max() > 0.1 * np.abs(output).max()


@pytest.mark.parametrize("name", models.NAMES)
def test_every_trained_model_answers_its_real_inputs_with_varied_outputs(name):
    """Verify that each output is finite and follows the input."""
    model = models.get(name)
    outputs = answers(model, model.rows())

    assert len(model.rows()) >= 8
    for output in outputs:
        assert np.isfinite(output).all()
        assert is_varied(output)


@pytest.mark.parametrize("name", [name for name in models.NAMES if models.get(name).labels])
def test_a_labelled_model_is_right_about_its_real_inputs(name):
    """Verify that inputs are made as the model was trained, by the labels it finds."""
    model = models.get(name)
    scores = answers(model, model.rows())[0]

    right = int((scores.argmax(axis=1) == model.labels()).sum())

    assert right >= RIGHT[name]


def test_the_bound_dimensions_are_names_that_the_model_uses():
    """Verify that `bind` binds something, and `shapes` gives every input."""
    for name in models.NAMES:
        model = models.get(name)
        graph = onnx.load(model.path(), load_external_data=False).graph
        symbols = {d.dim_param for i in graph.input for d in i.type.tensor_type.shape.dim}

        assert set(model.bind) <= symbols
        assert set(model.shapes) == {value.name for value in graph.input}


def test_the_evaluation_pages_are_all_read_right_and_share_no_document_with_calibration():
    """Verify the demo's ground: 52 of 52, on pages that codecs were not calibrated on."""
    model = models.get("page-orientation")
    scores = answers(model, pages.rows("evaluation"))[0]
    seen = {page.pixels.tobytes() for page in pages.pages("calibration")}

    assert int((scores.argmax(axis=1) == pages.labels("evaluation")).sum()) == 52
    assert not any(page.pixels.tobytes() in seen for page in pages.pages("evaluation"))


def test_the_rebuilt_efficientnet_names_what_the_photos_show():
    """Verify the network rebuilt from a state dict by ImageNet classes on real photos."""
    shown = {  # index of the centre crop -> ImageNet classes that name it
        1: {281, 282, 285},  # a cat
        2: {504, 967, 968},  # a cup of coffee
        5: {665, 670},  # a motorcycle
        7: {657, 744},  # a rocket
        8: {442, 663, 698},  # a palace
        9: {985},  # a daisy
    }
    model = models.get("efficientnet-lite0")
    scores = answers(model, [model.rows()[index] for index in shown])[0]

    named = [int(best) in shown[i] for i, best in zip(shown, scores.argmax(axis=1), strict=True)]

    assert all(named)


def test_the_text_reader_reads_the_lines_that_were_printed():
    """Verify `ppocr-rec` by CTC decoding: collapse repeats, drop blanks."""
    model = models.get("ppocr-rec")
    session = ort.InferenceSession(model.path())
    characters = session.get_modelmeta().custom_metadata_map["character"].split("\n")
    alphabet = ["", *characters, " "]
    read = []
    for row in model.rows():
        best = session.run(None, row)[0][0].argmax(axis=1)
        kept = [int(c) for c, before in zip(best, [0, *best[:-1]], strict=True) if c != before]
        read.append("".join(alphabet[c] for c in kept))

    assert read == list(words.lines(len(read)))


@pytest.mark.parametrize("name", light.NAMES)
def test_a_seeded_light_network_answers_photos_with_varied_outputs(name):
    """Verify that random weights replace the constants, and that the old form is kept."""
    model = models.light_model(name, seeded=True)
    (output,) = answers(model, model.rows()[8:16])
    proto = onnx.load(model.path())
    listed = {value.name for value in proto.graph.input}

    assert np.isfinite(output).all()
    assert is_varied(output)
    assert len(set(output.argmax(axis=1))) > 1
    assert proto.ir_version == 3
    assert {tensor.name for tensor in proto.graph.initializer} < listed
    assert all(node.op_type != "ConstantOfShape" for node in proto.graph.node)


def test_the_shipped_light_networks_keep_their_generators_and_mostly_answer_one_constant():
    """Verify why seeded weights are needed."""
    constant = 0
    for name in light.NAMES:
        model = models.light_model(name, seeded=False)
        graph = onnx.load(model.path()).graph
        (output,) = answers(model, model.rows()[:3])
        constant += bool(np.ptp(output, axis=0).max() <= 1e-6 * np.abs(output).max())

        assert any(node.op_type == "ConstantOfShape" for node in graph.node)

    assert constant >= 8
