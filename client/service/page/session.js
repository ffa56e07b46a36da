/** What this tab remembers until it is closed: the token, and the ids that were typed. Nothing outlives the session. */

const TOKEN = "veilrec.token";
const RECENT = "veilrec.recent";
const MOST_RECENT = 6;

export const session = {
  /** @returns {string} */
  get token() {
    return sessionStorage.getItem(TOKEN) ?? "";
  },
  set token(token) {
    if (token) sessionStorage.setItem(TOKEN, token);
    else sessionStorage.removeItem(TOKEN);
  },

  /** @returns {string[]} The last ids, the newest first. */
  get recent() {
    return JSON.parse(sessionStorage.getItem(RECENT) ?? "[]");
  },
  remember(user) {
    const ids = [user, ...this.recent.filter((one) => one !== user)].slice(0, MOST_RECENT);
    sessionStorage.setItem(RECENT, JSON.stringify(ids));
  },
  drop(user) {
    sessionStorage.setItem(RECENT, JSON.stringify(this.recent.filter((one) => one !== user)));
  },
  end() {
    sessionStorage.clear();
  },
};
