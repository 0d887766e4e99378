{{/* What every name begins with. Short enough for the longest name behind it. */}}
{{- define "dovetail.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Labels by which pods are selected; they can never change. Takes (root, component). */}}
{{- define "dovetail.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ default $root.Chart.Name $root.Values.nameOverride }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* Labels of every object. Takes (root, component). */}}
{{- define "dovetail.labels" -}}
{{- $root := index . 0 -}}
{{ include "dovetail.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: dovetail
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* Head of an object's metadata. Takes (root, component, suffix of the name). */}}
{{- define "dovetail.metadata" -}}
{{- $root := index . 0 -}}
name: {{ include "dovetail.fullname" $root }}{{ with index . 2 }}-{{ . }}{{ end }}
namespace: {{ $root.Release.Namespace }}
labels:
  {{- include "dovetail.labels" . | nindent 2 }}
{{- end -}}

{{/* Reference of an image. Takes (root, which). */}}
{{- define "dovetail.image" -}}
{{- $images := (index . 0).Values.images -}}
{{- $image := index $images (index . 1) -}}
{{- with $images.registry }}{{ . }}/{{ end -}}
{{- $image.repository -}}
{{- if $image.digest -}}
@{{ $image.digest }}
{{- else -}}
:{{ coalesce $image.tag $images.tag (index . 0).Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{/* Security of a pod under the restricted profile. */}}
{{- define "dovetail.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* Security of a container under the restricted profile. */}}
{{- define "dovetail.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* Where a component's pods go. Takes (root, component, its values). */}}
{{- define "dovetail.scheduling" -}}
{{- $values := index . 2 -}}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
affinity:
{{- if $values.affinity }}
  {{- toYaml $values.affinity | nindent 2 }}
{{- else }}
  podAntiAffinity:
    preferredDuringSchedulingIgnoredDuringExecution:
      - weight: 100
        podAffinityTerm:
          topologyKey: kubernetes.io/hostname
          labelSelector:
            matchLabels:
              {{- include "dovetail.selector" . | nindent 14 }}
{{- end }}
{{- with $values.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with (index . 0).Values.images.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* A budget that leaves one replica; nothing for a single one. Takes (root, component, its values). */}}
{{- define "dovetail.budget" -}}
{{- if gt (int (index . 2).replicas) 1 -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  {{- include "dovetail.metadata" (list (index . 0) (index . 1) (index . 1)) | nindent 2 }}
spec:
  maxUnavailable: 1
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels:
      {{- include "dovetail.selector" . | nindent 6 }}
{{- end -}}
{{- end -}}

{{/* How devices come to a pool: proxy (ours), routes (a Gateway of the user's) or plain. */}}
{{- define "dovetail.gateway" -}}
{{- if not .Values.gateway.enabled -}}
plain
{{- else if .Values.gateway.gatewayApi.enabled -}}
routes
{{- else -}}
proxy
{{- end -}}
{{- end -}}

{{/* The Secret with the gateway's certificate; empty where there is none here. */}}
{{- define "dovetail.tlsSecret" -}}
{{- $mode := include "dovetail.gateway" . -}}
{{- $tls := .Values.gateway.tls -}}
{{- if and $tls.existingSecret (ne $mode "plain") -}}
{{- $tls.existingSecret -}}
{{- else if eq $mode "proxy" -}}
{{- include "dovetail.fullname" . }}-gateway-tls
{{- end -}}
{{- end -}}

{{/* Name of the host in a URL. */}}
{{- define "dovetail.host" -}}
{{- regexReplaceAll ":[0-9]+$" (get (urlParse .) "host") "" -}}
{{- end -}}

{{/* Names of the certificate, as YAML; a public authority refuses all where one is a Service's. */}}
{{- define "dovetail.dnsNames" -}}
{{- $service := printf "%s-gateway.%s" (include "dovetail.fullname" .) .Release.Namespace -}}
{{- $names := list -}}
{{- if .Values.gateway.tls.privateCa -}}
{{- $names = list (printf "%s.svc" $service) $service (printf "%s.svc.%s" $service .Values.clusterDomain) -}}
{{- end -}}
{{- with .Values.gateway.externalUrl -}}
{{- $host := include "dovetail.host" . -}}
{{- if not (regexMatch "^[0-9.]+$" $host) -}}
{{- $names = append $names $host -}}
{{- end -}}
{{- end -}}
{{- toYaml (concat $names .Values.gateway.tls.dnsNames | uniq) -}}
{{- end -}}

{{/* Addresses of the certificate, as YAML. */}}
{{- define "dovetail.ips" -}}
{{- $ips := .Values.gateway.tls.ips -}}
{{- with .Values.gateway.externalUrl -}}
{{- $host := include "dovetail.host" . -}}
{{- if regexMatch "^[0-9.]+$" $host -}}
{{- $ips = append $ips $host -}}
{{- end -}}
{{- end -}}
{{- toYaml (uniq $ips) -}}
{{- end -}}
