{{/*
The gateway's whole configuration. A shared pool is a server that is there always; a dedicated one
comes and goes with its deployment, so its name is looked up when asked for. Which path leads where
is a matter of names alone: the operator's, and the values' list. What HAProxy itself answers has no
`Dovetail-Error`, by which devices tell it from an answer of a tail. It is plain text, but for what
no rule ever sees: a request that cannot be read or does not come gets HAProxy's own 400 or 408.
*/}}
{{- define "dovetail.haproxy" -}}
{{- $namespace := .Release.Namespace -}}
{{- $domain := .Values.clusterDomain -}}
global
  log stdout format raw local0 notice
  maxconn {{ .Values.gateway.maxConnections }}
  nbthread {{ .Values.gateway.threads }}
  hard-stop-after 30s
  ssl-default-bind-options ssl-min-ver TLSv1.2
  # a request's line and headers must fit, and Ray takes no more either
  tune.bufsize 16384
  tune.http.maxhdr 64

defaults
  mode http
  log global
  option httplog
  option dontlog-normal
  option http-keep-alive
  # devices retry by themselves, within their deadline
  retries 0
  timeout connect 2s
  timeout http-request 10s
  timeout http-keep-alive 120s
  timeout client 60s
  timeout server 60s
  timeout queue 2s
  http-error status 403 content-type text/plain string "gateway: refused\n"
  http-error status 404 content-type text/plain string "gateway: no such pool; a path begins with /NAMESPACE/POOL/\n"
  http-error status 413 content-type text/plain string "gateway: the body exceeds {{ .Values.gateway.maxBodyMiB }} MiB\n"
  http-error status 502 content-type text/plain string "gateway: the pool broke off its answer\n"
  http-error status 503 content-type text/plain string "gateway: the pool cannot be reached\n"
  http-error status 504 content-type text/plain string "gateway: the pool did not answer in time\n"

resolvers cluster
  parse-resolv-conf
  resolve_retries 3
  timeout resolve 1s
  timeout retry 500ms
  hold valid 10s
  hold nx 2s
  # a name server that is away says nothing of a pool: it stays where it was
  hold refused 1h
  hold timeout 1h
  hold other 1h

frontend devices
  bind :8443 ssl crt /etc/gateway/tls/tls.crt alpn http/1.1
  http-request return status 200 content-type text/plain string "ok\n" if { path /healthz }
  http-request deny deny_status 413 if { req.hdr_val(content-length) gt {{ mul .Values.gateway.maxBodyMiB 1048576 }} }
  http-request set-var(txn.namespace) path,field(2,/)
  http-request set-var(txn.pool) path,field(3,/)
  acl named path -m reg ^/[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?/[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?/
  acl here var(txn.namespace) -m str {{ $namespace }}
  {{- with .Values.watchNamespace }}
  acl served var(txn.namespace) -m str {{ . }}
  {{- else }}
  acl served always_true
  {{- end }}
  {{- range .Values.pools }}
  acl shared var(txn.pool) -m str {{ .name }}
  {{- end }}
  acl dedicated var(txn.pool) -m reg ^[a-z0-9][-a-z0-9]*-pool-[0-9a-f]{8}$
  http-request set-var(txn.host) var(txn.pool),concat(-serve-svc.,txn.namespace,.svc.{{ $domain }})
  http-request deny deny_status 404 unless named
  # Ray's own pages, which tell whoever asks the name of every deployment in the pool
  http-request deny deny_status 403 if { path,url_dec -m reg ^/[^/]+/[^/]+/+-(/|$) }
  http-request replace-path /[^/]+/[^/]+/(.*) /\1
  {{- if .Values.pools }}
  use_backend pool-%[var(txn.pool)] if here shared
  {{- end }}
  use_backend dedicated if served dedicated
  default_backend nowhere

backend nowhere
  http-request deny deny_status 404
{{ range .Values.pools }}
backend pool-{{ .name }}
  server pool {{ .name }}-serve-svc.{{ $namespace }}.svc.{{ $domain }}:8000 resolvers cluster resolve-prefer ipv4 init-addr none
{{ end }}
backend dedicated
  http-request do-resolve(txn.address,cluster,ipv4) var(txn.host)
  http-request deny deny_status 503 unless { var(txn.address) -m found }
  http-request set-dst var(txn.address)
  server pool 0.0.0.0:8000
{{ end -}}
