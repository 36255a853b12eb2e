{{- define "finetune-operator.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "finetune-operator.fullname" -}}
{{- $name := include "finetune-operator.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* The names of cluster-scoped objects: releases of one name may stand in several namespaces. */}}
{{- define "finetune-operator.clusterName" -}}
{{- printf "%s.%s" .Release.Namespace (include "finetune-operator.fullname" .) -}}
{{- end -}}

{{- define "finetune-operator.serviceAccountName" -}}
{{- default (ternary (include "finetune-operator.fullname" .) "default" .Values.serviceAccount.create) .Values.serviceAccount.name -}}
{{- end -}}

{{- define "finetune-operator.selectorLabels" -}}
app.kubernetes.io/name: {{ include "finetune-operator.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "finetune-operator.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "finetune-operator.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Another release that owns the definition, as YAML; nothing where none does, or where Helm asks no cluster. Helm refuses
an object of another release, and the definition outlives the one that brought it (crds.keep): it is left to its owner. */}}
{{- define "finetune-operator.definitionOwner" -}}
{{- $found := lookup "apiextensions.k8s.io/v1" "CustomResourceDefinition" "" "finetunejobs.finetune.dev" -}}
{{- $annotations := dig "metadata" "annotations" dict $found -}}
{{- $release := get $annotations "meta.helm.sh/release-name" -}}
{{- $namespace := get $annotations "meta.helm.sh/release-namespace" -}}
{{- if and $release (or (ne $release .Release.Name) (ne $namespace .Release.Namespace)) -}}
{{- dict "release" $release "namespace" $namespace "version" (dig "metadata" "labels" "app.kubernetes.io/version" "0.0.0" $found) | toYaml -}}
{{- end -}}
{{- end -}}

{{/* The command that makes this release the definition's owner. */}}
{{- define "finetune-operator.takeOver" -}}
kubectl annotate crd finetunejobs.finetune.dev --overwrite meta.helm.sh/release-name={{ .Release.Name }} meta.helm.sh/release-namespace={{ .Release.Namespace }}
{{- end -}}

{{/* The full name of an image. Takes [root, image]. */}}
{{- define "finetune-operator.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- with $root.Values.registry }}{{ trimSuffix "/" . }}/{{ end -}}
{{- $image.repository -}}
{{- if $image.digest }}@{{ $image.digest }}{{ else }}:{{ default $root.Chart.AppVersion $image.tag }}{{ end -}}
{{- end -}}

{{/* What all trainer pods look like, as JSON: trainer.podTemplate, and in prepare, the one stage that talks to the
network, also trainer.proxy, trainer.caBundle and trainer.hfEndpoint. A variable that the template names too is the
template's. Empty: nothing is said. */}}
{{- define "finetune-operator.podTemplate" -}}
{{- $trainer := .Values.trainer -}}
{{- $env := list -}}
{{- range $name, $value := dict "http_proxy" $trainer.proxy.http "https_proxy" $trainer.proxy.https "no_proxy" $trainer.proxy.noProxy -}}
{{- if $value -}}
{{- $env = concat $env (list (dict "name" (upper $name) "value" $value) (dict "name" $name "value" $value)) -}}
{{- end -}}
{{- end -}}
{{- with $trainer.hfEndpoint -}}
{{- $env = append $env (dict "name" "HF_ENDPOINT" "value" .) -}}
{{- end -}}
{{- $template := deepCopy (default dict $trainer.podTemplate) -}}
{{- $stages := default dict $template.stages -}}
{{- $prepare := default dict $stages.prepare -}}
{{- with $trainer.caBundle -}}
{{- if .configMapName -}}
{{- range $name := list "SSL_CERT_FILE" "REQUESTS_CA_BUNDLE" "CURL_CA_BUNDLE" -}}
{{- $env = append $env (dict "name" $name "value" (printf "/mnt/ca-bundle/%s" $trainer.caBundle.key)) -}}
{{- end -}}
{{- $volume := dict "name" "ca-bundle" "configMap" (dict "name" .configMapName) -}}
{{- $mount := dict "name" "ca-bundle" "mountPath" "/mnt/ca-bundle" "readOnly" true -}}
{{- $_ := set $prepare "volumes" (prepend (default list $prepare.volumes) $volume) -}}
{{- $_ := set $prepare "volumeMounts" (prepend (default list $prepare.volumeMounts) $mount) -}}
{{- end -}}
{{- end -}}
{{- $said := list -}}
{{- range concat (default list $template.env) (default list $prepare.env) -}}
{{- $said = append $said .name -}}
{{- end -}}
{{- $missing := list -}}
{{- range $env -}}
{{- if not (has .name $said) -}}
{{- $missing = append $missing . -}}
{{- end -}}
{{- end -}}
{{- with $missing -}}
{{- $_ := set $prepare "env" (concat . (default list $prepare.env)) -}}
{{- end -}}
{{- with $prepare -}}
{{- $_ := set $template "stages" (set $stages "prepare" .) -}}
{{- end -}}
{{- with $template -}}
{{- toJson . -}}
{{- end -}}
{{- end -}}

{{/* What the operator may do where jobs are: all of it, for the ClusterRole and for the Role of one namespace alike.
No Secrets: the kubelet alone reads those, when it mounts them. */}}
{{- define "finetune-operator.rules" -}}
- apiGroups: [finetune.dev]
  resources: [finetunejobs]
  verbs: [get, list, watch, delete] # delete: ttlSecondsAfterFinished
- apiGroups: [finetune.dev]
  resources: [finetunejobs/status]
  verbs: [patch]
- apiGroups: [finetune.dev]
  resources: [finetunejobs/finalizers] # for clusters that check owner references (OwnerReferencesPermissionEnforcement)
  verbs: [update]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, delete]
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, create]
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get, create, patch, delete] # patch: a workspace that outlives its job; delete: one that is no longer needed
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
- apiGroups: [""]
  resources: [events]
  verbs: [list, create]
{{- end -}}
