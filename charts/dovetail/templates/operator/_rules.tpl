{{/*
What the operator may do where HybridDeployments are. It watches Secrets by metadata alone, which
no rule can say; `get` on a Secret it has for its own token only.
*/}}
{{- define "dovetail.rules" -}}
- apiGroups: [dovetail.dev]
  resources: [hybriddeployments]
  verbs: [list, watch]
- apiGroups: [dovetail.dev]
  resources: [hybriddeployments/status]
  verbs: [patch]
# an owner may be set by who may finalize it
- apiGroups: [dovetail.dev]
  resources: [hybriddeployments/finalizers]
  verbs: [update]
- apiGroups: [""]
  resources: [configmaps, secrets, serviceaccounts, services]
  verbs: [create, delete, list, patch, watch]
- apiGroups: [apps]
  resources: [daemonsets]
  verbs: [create, delete, list, patch, watch]
# versions that a deployment can go back to
- apiGroups: [apps]
  resources: [controllerrevisions]
  verbs: [create, delete, get, list, patch, watch]
# who may reach a pool that one deployment has to itself
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [create, delete, list, patch, watch]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [create, delete, list, patch, watch]
- apiGroups: [ray.io]
  resources: [rayservices]
  verbs: [create, delete, patch]
- apiGroups: [""]
  resources: [pods]
  verbs: [list]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end -}}

{{/* Name of the Secret with the token that reads ledgers, as the operator makes it. */}}
{{- define "dovetail.ledgerToken" -}}
{{- . | trunc 48 | trimSuffix "-" }}-token-{{ printf "%s/token/ledger" . | sha256sum | trunc 8 }}
{{- end -}}
