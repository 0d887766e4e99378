"""Sets of values with which the chart is rendered in tests, by what is special about each."""

from typing import Any

PEER = {"podSelector": {"matchLabels": {"app": "my-gateway"}}}
PLACED: dict[str, Any] = {
    "priorityClassName": "system-cluster-critical",
    "nodeSelector": {"kind": "control"},
    "tolerations": [{"key": "control", "operator": "Exists"}],
    "affinity": {
        "nodeAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [
                {
                    "weight": 1,
                    "preference": {"matchExpressions": [{"key": "a", "operator": "Exists"}]},
                }
            ]
        }
    },
    "topologySpreadConstraints": [
        {
            "maxSkew": 1,
            "topologyKey": "topology.kubernetes.io/zone",
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": {"app.kubernetes.io/name": "dovetail"}},
        }
    ],
    "podAnnotations": {"example.com/why": "because"},
    "resources": {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"memory": "2Gi"}},
}
SIZED: dict[str, Any] = {
    "maxTails": 7,
    "workers": 3,
    "cpu": "4",
    "memory": "8Gi",
    "rayCluster": {"enableInTreeAutoscaling": True},
}


def _image(name: str) -> dict[str, str]:
    return {"repository": f"mine/{name}", "tag": "1.2.3", "digest": f"sha256:{'ab' * 32}"}


EVERYTHING: dict[str, Any] = {
    "global": {"of": "a parent chart"},
    "nameOverride": "tail",
    "fullnameOverride": "seam",
    "clusterDomain": "k8s.example",
    "watchNamespace": "default",
    "crds": {"enabled": True, "keep": False},
    "images": {
        "registry": "registry.example:5000",
        "tag": "9.9.9",
        "pullPolicy": "Always",
        "pullSecrets": [{"name": "pull"}],
        **{
            name: _image(name) for name in ("operator", "partitioner", "edge", "serving", "gateway")
        },
    },
    "partitioner": {
        "resources": {"requests": {"cpu": "2", "memory": "4Gi"}, "limits": {"memory": "16Gi"}},
        "nodeSelector": {"kind": "build"},
        "tolerations": [{"key": "build", "operator": "Exists"}],
    },
    "rayVersion": "2.61.0",
    "registry": {"url": "https://r.example", "repository": "a/b", "existingSecret": "login"},
    "pools": [{"name": "big", "namespaces": ["default"], **SIZED}, {"name": "small"}],
    "dedicatedPool": SIZED,
    "cache": "/data/dovetail",
    "telemetry": {"otlpEndpoint": "http://collector.example:4318"},
    "operator": {
        "replicas": 3,
        "logLevel": "debug",
        "leaseSeconds": 30,
        "env": [{"name": "HTTPS_PROXY", "value": "http://proxy.example:3128"}],
        "serviceAccountAnnotations": {"example.com/role": "none"},
        **PLACED,
    },
    "metrics": {
        "serviceMonitor": {"enabled": True, "interval": "15s", "labels": {"release": "prometheus"}}
    },
    "gateway": {
        "enabled": True,
        "replicas": 3,
        "externalUrl": "https://devices.example:8443",
        "maxConnections": 100,
        "threads": 4,
        "maxBodyMiB": 10,
        "service": {
            "type": "NodePort",
            "nodePort": 30443,
            "annotations": {"example.com/pool": "public"},
        },
        "tls": {
            "existingSecret": "",
            "privateCa": True,
            "dnsNames": ["other.example"],
            "ips": ["192.0.2.7"],
            "days": 30,
            "certManager": {"enabled": True, "issuerRef": {"name": "ours", "kind": "Issuer"}},
        },
        "gatewayApi": {"enabled": False, "url": "", "parentRefs": [], "hostnames": []},
        **PLACED,
    },
    "networkPolicy": {
        "enabled": True,
        "kuberayNamespace": "kuberay",
        "poolsFrom": [PEER],
    },
}
MATRIX: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "everything given": EVERYTHING,
    "no gateway": {"gateway": {"enabled": False}},
    "a Gateway of the user": {
        "gateway": {
            "gatewayApi": {
                "enabled": True,
                "url": "https://gw.example",
                "parentRefs": [{"name": "public", "namespace": "infra"}],
                "hostnames": ["gw.example"],
            }
        },
        "networkPolicy": {"poolsFrom": [PEER]},
    },
    "a Gateway of the user and a private authority": {
        "gateway": {
            "gatewayApi": {
                "enabled": True,
                "url": "https://gw.example",
                "parentRefs": [{"name": "public"}],
            },
            "tls": {"existingSecret": "authority"},
        }
    },
    "a certificate of the user": {"gateway": {"tls": {"existingSecret": "wildcard"}}},
    "a certificate of a public authority": {
        "gateway": {
            "tls": {"existingSecret": "wildcard", "privateCa": False},
            "externalUrl": "https://tails.example:30443",
            "service": {"type": "LoadBalancer"},
        }
    },
    "cert-manager": {
        "gateway": {
            "tls": {"certManager": {"enabled": True, "issuerRef": {"name": "ours"}}},
            "externalUrl": "https://192.0.2.1:30443",
        }
    },
    "cert-manager and a public authority": {
        "gateway": {
            "tls": {
                "privateCa": False,
                "certManager": {"enabled": True, "issuerRef": {"name": "acme"}},
            },
            "externalUrl": "https://tails.example",
        }
    },
    "one of each": {"operator": {"replicas": 1}, "gateway": {"replicas": 1}},
    "one namespace": {"watchNamespace": "default"},
    "no definition and no policies": {
        "crds": {"enabled": False},
        "networkPolicy": {"enabled": False},
    },
    "no shared pools": {"pools": []},
    "pools named like parts of the gateway": {
        "pools": [{"name": name} for name in ("devices", "nowhere", "dedicated", "cluster")]
    },
    "a long name": {"fullnameOverride": "a" * 40},
}
