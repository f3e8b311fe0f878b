// A request as a command that does the same in a shell.

/** A word as a POSIX shell takes it, whatever stands in it. */
const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** JSON on one line, with room between its parts. */
function spaced(value) {
  if (Array.isArray(value)) return `[${value.map(spaced).join(", ")}]`;
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  const parts = Object.entries(value).map(([name, part]) => `${JSON.stringify(name)}: ${spaced(part)}`);
  return `{${parts.join(", ")}}`;
}

/** The command that posts `body`; a key is named and not shown, because commands are pasted into places that others read. */
export function curl(path, body, { hasKey }) {
  return [
    `curl -X POST ${quoted(`${location.origin}${path}`)}`,
    ...(hasKey ? ['-H "Authorization: Bearer $DESCENT_API_KEY"'] : []),
    "-H 'Content-Type: application/json'",
    `-d ${quoted(spaced(body))}`,
  ].join(" \\\n  ");
}
