-- Health of a FineTuneJob for Argo CD: docs/argocd-health.md says how it is installed.
-- A job that waits is Progressing, with the reason as its message: it goes on when the cause is gone.
local status = obj.status or {}
local found = {}
for _, condition in ipairs(status.conditions or {}) do
  found[condition.type] = condition
end

local function holds(name)
  return found[name] ~= nil and found[name].status == "True"
end

local function health(state, condition, fallback)
  local words = fallback
  if condition ~= nil then
    words = condition.reason
    if condition.message ~= nil and condition.message ~= "" then
      words = words .. ": " .. condition.message
    end
  end
  return { status = state, message = words }
end

-- Failures that more tries would only repeat.
local not_by_tries = {
  BadSpec = true, DatasetInvalid = true, Diverged = true, Unsupported = true, DependencyFailed = true,
}

-- Whether a job that has failed is about to go on, because a limit was raised that the operator has not acted upon yet.
local function is_raised()
  local spec, limits = obj.spec or {}, status.limits or {}
  if (spec.restarts or 0) > (limits.restarts or 0) then
    return true
  end
  if found.Failed.reason == "DeadlineExceeded" and limits.deadlineSeconds ~= nil then
    return spec.deadlineSeconds == nil or spec.deadlineSeconds > limits.deadlineSeconds
  end
  local tries = limits.retryLimit ~= nil and spec.retry ~= nil and spec.retry.limit ~= nil
  return tries and spec.retry.limit > limits.retryLimit and not not_by_tries[found.Failed.reason]
end

if obj.metadata.deletionTimestamp ~= nil then
  return health("Progressing", nil, "is being deleted")
end
if holds("Complete") then
  return health("Healthy", found.Complete)
end
if holds("Failed") then
  if is_raised() then
    return health("Progressing", nil, "goes on: a limit was raised")
  end
  return health("Degraded", found.Failed)
end
if status.observedGeneration == nil or status.observedGeneration < (obj.metadata.generation or 0) then
  return health("Progressing", nil, "the operator has not seen this version of the job yet")
end
if holds("Suspended") then
  return health("Suspended", found.Suspended)
end
return health("Progressing", found.Progressing, "in phase " .. (status.phase or "unknown"))
