/** The service's HTTP interface. The token goes into a header, never into an address. */

import { session } from "./session.js";

/** What the service, or the way to it, could not do. `status` is 0 where nothing answered. */
export class ServiceError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

const PLAIN = {
  0: "The service does not answer. Is it running?",
  401: "The service does not know this token.",
  429: "Too many requests at once. Wait a moment.",
  500: "The service met an error of its own. Its log says more.",
  503: "The service cannot answer just now.",
};

/** @param {number} status @param {{message?: string}} told */
function inWords(status, told) {
  const plain = PLAIN[status];
  const message = typeof told.message === "string" ? told.message : "";
  if (status === 503 && message) return `${plain} ${message}`;
  return plain ?? (message || `The service answered with status ${status}.`);
}

async function send(path, options) {
  const headers = session.token ? { Authorization: `Bearer ${session.token}` } : {};
  let response;
  try {
    response = await fetch(path, { ...options, headers: { ...headers, ...options.headers }, cache: "no-store" });
  } catch {
    throw new ServiceError(0, PLAIN[0]);
  }
  const told = await response.json().catch(() => null);
  if (response.ok && told !== null) return told;
  throw new ServiceError(response.status, inWords(response.status, told ?? {}));
}

const get = (path) => send(path, { method: "GET" });
const post = (path, body) =>
  send(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });

export const releases = () => get("/v1/releases");
export const categories = async () => (await get("/v1/categories")).categories;
export const rank = (request) => post("/v1/rank", request);
export const rankBatch = async (requests) => (await post("/v1/rank/batch", { requests })).lists;
export const tell = (user, itemId, kind) => post("/v1/events", { user_id: user, events: [{ item_id: itemId, kind }] });
export const forget = async (user) => (await post("/v1/users/forget", { user_id: user })).erased;

/** What is held of a user, the newest first; empty for one of whom nothing is. */
export async function history(user) {
  try {
    return (await post("/v1/users/history", { user_id: user })).events;
  } catch (error) {
    if (error.status === 404) return [];
    throw error;
  }
}
