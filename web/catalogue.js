// What can be chosen, as the server tells it: its catalogue, and the schemas of its requests.

import { get } from "./api.js";

let loading = null;

/**
 * `{optimizers, schedules, clips, datasets, request(name)}`, read once. Raises as `send` does; a later call then asks again.
 * `request(name)` are the fields of a request of the API's document, each as the catalogue describes a parameter.
 */
export function catalogue() {
  loading ??= read().catch((error) => {
    loading = null;
    throw error;
  });
  return loading;
}

async function read() {
  const [choices, { datasets }, { components }] = await Promise.all([
    get("/optimizers"),
    get("/datasets"),
    get("/openapi.json"),
  ]);
  const request = (name) => parametersOf(components.schemas[name]);
  return { ...choices, datasets, request };
}

/** The fields of an object's schema: `{name, schema, default, required}` by name. */
export function parametersOf({ properties, required = [] }) {
  const parameters = Object.entries(properties).map(([name, schema]) => [
    name,
    { name, schema, default: schema.default ?? null, required: required.includes(name) },
  ]);
  return Object.fromEntries(parameters);
}
