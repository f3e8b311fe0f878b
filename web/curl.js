// A request as a command that does the same in a shell.

import { hasKey } from "./api.js";

/** A word as a POSIX shell takes it, whatever stands in it. */
const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** JSON on one line, with room between its parts. */
function spaced(value) {
  if (Array.isArray(value)) return `[${value.map(spaced).join(", ")}]`;
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  const parts = Object.entries(value).map(([name, part]) => `${JSON.stringify(name)}: ${spaced(part)}`);
  return `{${parts.join(", ")}}`;
}

/** A key is named and not shown, because commands are pasted into places that others read. */
const command = (path, ...options) =>
  [
    `curl -X POST ${quoted(`${location.origin}${path}`)}`,
    ...(hasKey() ? ['-H "Authorization: Bearer $DESCENT_API_KEY"'] : []),
    ...options,
  ].join(" \\\n  ");

/** The command that posts `body`. */
export const curl = (path, body) => command(path, "-H 'Content-Type: application/json'", `-d ${quoted(spaced(body))}`);

/** The command that posts a form; a value that begins with `@` is a file. */
export const curlForm = (path, fields) =>
  command(path, ...Object.entries(fields).map(([name, value]) => `-F ${quoted(`${name}=${value}`)}`));
