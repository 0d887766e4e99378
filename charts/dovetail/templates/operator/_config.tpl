{{/* What the operator reads: core words, one document, checked when it starts. */}}
{{- define "dovetail.config" -}}
{{- $mode := include "dovetail.gateway" . -}}
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
{{- if eq $mode "proxy" }}
endpoint: https://{{ include "dovetail.fullname" . }}-gateway.{{ .Release.Namespace }}.svc:8443{{ $path }}
{{- else if eq $mode "routes" }}
endpoint: {{ required "gateway.gatewayApi.url: say how devices reach your Gateway" .Values.gateway.gatewayApi.url }}{{ $path }}
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

{{/* The Secret whose `ca.crt` devices must trust; empty where they need none of ours. */}}
{{- define "dovetail.endpointCa" -}}
{{- if .Values.gateway.tls.privateCa -}}
{{- include "dovetail.tlsSecret" . -}}
{{- end -}}
{{- end -}}
