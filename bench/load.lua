-- For wrk: a POST when the environment names a BODY, and the figures as one line of JSON at the end.

if os.getenv('BODY') then
  wrk.method = 'POST'
  wrk.body = os.getenv('BODY')
  wrk.headers['Content-Type'] = 'application/json'
end

function done(summary, latency)
  local errors, failed = summary.errors, 0
  for _, kind in ipairs({'connect', 'read', 'write', 'status', 'timeout'}) do failed = failed + errors[kind] end
  io.write(string.format('{"per_s": %.3f, "p50_ms": %.3f, "p95_ms": %.3f, "p99_ms": %.3f, "failed": %d}\n',
    summary.requests / summary.duration * 1e6, latency:percentile(50) / 1000, latency:percentile(95) / 1000,
    latency:percentile(99) / 1000, failed))
end
