-- Owns what wrk prints at its end: one line of JSON, the last of its output.
-- Must not run while wrk measures.
function done(summary)
  local errors = summary.errors
  io.write(string.format('{"requests":%d,"microseconds":%d,"failed":%d}\n', summary.requests, summary.duration,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
