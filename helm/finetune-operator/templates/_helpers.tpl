{{/* Name of all objects: the release's name, with the chart's name unless it is in there. */}}
{{- define "finetune-operator.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "finetune-operator.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "finetune-operator.labels" -}}
{{ include "finetune-operator.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "finetune-operator.serviceAccountName" -}}
{{- $default := ternary (include "finetune-operator.fullname" .) "default" .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default $default -}}
{{- end -}}

{{/* Reference of an image. Takes a list: name of the value, root context. */}}
{{- define "finetune-operator.image" -}}
{{- $name := index . 0 -}}
{{- $root := index . 1 -}}
{{- $image := index $root.Values $name -}}
{{- $repository := required (printf "%s.repository is empty: build and push the image, then pass --set %s.repository=…" $name $name) $image.repository -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $repository $image.digest -}}
{{- else -}}
{{- $tag := $image.tag | default $root.Chart.AppVersion -}}
{{- /* `--set image.tag=123` gives a number, which must not be printed as 1.23e+02. */ -}}
{{- printf "%s:%s" $repository (ternary $tag (int64 $tag | toString) (kindIs "string" $tag)) -}}
{{- end -}}
{{- end -}}

{{/* The settings file: `settings` as it stands, and what other values say. A new setting needs no line here. */}}
{{- define "finetune-operator.settings" -}}
{{- $service := printf "http://%s.%s.svc.%s:8080" (include "finetune-operator.fullname" .) .Release.Namespace .Values.clusterDomain -}}
{{- $secrets := list -}}
{{- range .Values.trainerImagePullSecrets }}{{ $secrets = append $secrets .name }}{{ end -}}
{{- $others := dict
      "trainerImage" (include "finetune-operator.image" (list "trainerImage" .))
      "imagePullPolicy" .Values.trainerImage.pullPolicy
      "imagePullSecrets" $secrets
      "leaseNamespace" .Release.Namespace
      "leaseName" (include "finetune-operator.fullname" .)
      "reportUrl" (.Values.settings.reportUrl | default $service) -}}
{{- mergeOverwrite (deepCopy .Values.settings) $others | toYaml -}}
{{- end -}}

{{/* What the operator does with namespaced objects: in all namespaces, or in each of settings.namespaces.
No verb on Secrets: pods mount them, the operator never reads one. */}}
{{- define "finetune-operator.rules" -}}
- apiGroups: [finetune-operator.io]
  resources: [finetunes]
  # Patched: the finalizer of one whose files go with it. Deleted only when ttlSecondsAfterFinished is up.
  verbs: [get, list, watch, patch, delete]
- apiGroups: [finetune-operator.io]
  resources: [finetunes/status]
  verbs: [get, patch]
# Where the admission plugin OwnerReferencesPermissionEnforcement is on, blockOwnerDeletion needs this.
- apiGroups: [finetune-operator.io]
  resources: [finetunes/finalizers]
  verbs: [update]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, patch, delete] # Patched: the priority of one in a queue.
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, delete] # Deleted only where its node is lost, since nobody else does.
- apiGroups: [""]
  resources: [pods/status]
  verbs: [patch] # As above: it is called failed first.
- apiGroups: [""]
  resources: [configmaps, services] # A Service only for a gang of several pods.
  verbs: [get, create]
- apiGroups: [""]
  resources: [events]
  verbs: [create, list, get, patch] # The same turn again is counted up, not told again.
{{- end -}}
