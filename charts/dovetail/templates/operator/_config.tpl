{{/* What the operator reads: core words, one document, checked when it starts. */}}
{{- define "dovetail.config" -}}
{{- $path := "/{namespace}/{pool}" -}}
release: {{ include "dovetail.fullname" . }}-release
namespace: {{ .Release.Namespace }}
images:
  edge: {{ include "dovetail.image" (list . "edge") | quote }}
  partitioner: {{ include "dovetail.image" (list . "partitioner") | quote }}
  serving: {{ include "dovetail.image" (list . "serving") | quote }}
  pullPolicy: {{ .Values.images.pullPolicy }}
  {{- with .Values.images.pullSecrets }}
  pullSecrets:
    {{- range . }}
    - {{ .name }}
    {{- end }}
  {{- end }}
partitioner:
  {{- toYaml .Values.partitioner | nindent 2 }}
registry:
  url: {{ required "registry.url: say where bundles are kept, as http(s)://host[:port]" .Values.registry.url | quote }}
  repository: {{ .Values.registry.repository | quote }}
  {{- with .Values.registry.existingSecret }}
  secret: {{ . }}
  {{- end }}
rayVersion: {{ .Values.rayVersion | quote }}
pools:
  {{- toYaml .Values.pools | nindent 2 }}
dedicated:
  {{- toYaml (merge (dict "name" "dedicated") .Values.dedicatedPool) | nindent 2 }}
cache: {{ .Values.cache }}
{{- with include "dovetail.endpoint" . }}
endpoint: {{ . }}{{ $path }}
{{- end }}
{{- with .Values.gateway.externalUrl }}
externalEndpoint: {{ . }}{{ $path }}
{{- end }}
{{- if include "dovetail.endpointCa" . }}
endpointCa: /etc/dovetail/gateway/ca.crt
{{- end }}
{{- with .Values.telemetry.otlpEndpoint }}
telemetry: {{ . }}
{{- end }}
{{- if .Values.networkPolicy.enabled }}
poolIngress:
  {{- include "dovetail.poolIngress" . | nindent 2 }}
{{- end }}
{{- end -}}

{{/*
Where devices in the cluster find the pools; empty where nothing of ours leads there. No public
authority signs the name of a Service, so with its certificate they take the way from outside.
*/}}
{{- define "dovetail.endpoint" -}}
{{- $mode := include "dovetail.gateway" . -}}
{{- $tls := .Values.gateway.tls -}}
{{- $external := .Values.gateway.externalUrl -}}
{{- if eq $mode "plain" -}}
{{- if $external -}}
{{- fail "gateway.externalUrl: there is no gateway that leads /NAMESPACE/POOL to a pool; take it out, and give deployments the address of their pool as spec.cloud.endpoint, or set gateway.enabled" -}}
{{- end -}}
{{- else if eq $mode "routes" -}}
{{- required "gateway.gatewayApi.url: say how devices reach your Gateway" .Values.gateway.gatewayApi.url -}}
{{- else if $tls.privateCa -}}
https://{{ include "dovetail.fullname" . }}-gateway.{{ .Release.Namespace }}.svc:8443
{{- else if not (or $tls.existingSecret $tls.certManager.enabled) -}}
{{- fail "gateway.tls.privateCa: false is for a certificate of a public authority, and the chart makes none; give it as gateway.tls.existingSecret or by gateway.tls.certManager, or leave privateCa true" -}}
{{- else -}}
{{- required "gateway.externalUrl: with gateway.tls.privateCa=false devices in the cluster reach the gateway by a name that a public authority signs; set it to https://host[:port] with that name" $external -}}
{{- end -}}
{{- end -}}

{{/* The Secret whose `ca.crt` devices must trust; empty where they need none of ours. */}}
{{- define "dovetail.endpointCa" -}}
{{- if .Values.gateway.tls.privateCa -}}
{{- include "dovetail.tlsSecret" . -}}
{{- end -}}
{{- end -}}
