// A session of its own for each test. Copy this file; see example.spec.ts for its use.
// Settings: SESSIONSTORE_URL, SESSIONSTORE_API_KEY, and optionally SESSIONSTORE_PROJECT and SESSIONSTORE_ENVIRONMENT.
import { randomBytes } from "node:crypto";
import { test as base } from "@playwright/test";

/** What a PUT sets; null clears a field. Delays are in milliseconds. */
export interface MockState {
  scenario?: string | null;
  overrides?: string[];
  globalDelayMs?: number | null;
  globalDelayMaxMs?: number | null;
  label?: string | null;
  ttlSeconds?: number | null;
}

/** The session of one test. Each change is in effect on every live proxy when its promise resolves. */
export interface MockSession {
  readonly key: string;
  /** Change some fields; the others stay as they are. */
  put(state: MockState): Promise<void>;
  /** Switch one mock on or off. */
  on(override: string): Promise<void>;
  off(override: string): Promise<void>;
}

interface Fixtures {
  /** How each test's session begins: `test.use({ mocks: { scenario: "scn_…" } })`. */
  mocks: MockState;
  /** Origins of the proxies, such as `https://staging.example`. Requests to others get no session header. */
  mockOrigins: string[];
  mockSession: MockSession;
}

const { SESSIONSTORE_URL = "http://localhost:8080", SESSIONSTORE_API_KEY = "", ...env } = process.env;
const run = randomBytes(4).toString("hex");

export const test = base.extend<Fixtures>({
  mocks: [{}, { option: true }],
  mockOrigins: [[], { option: true }],
  mockSession: [
    async ({ mocks, mockOrigins, context, playwright }, use, info) => {
      const key = `pw-${run}-${info.testId}-${info.retry}-${info.repeatEachIndex}`;
      const gateway = await playwright.request.newContext({
        baseURL: SESSIONSTORE_URL,
        extraHTTPHeaders: { authorization: `Bearer ${SESSIONSTORE_API_KEY}` },
      });
      const call = async (method: string, path: string, query: Record<string, string>, data?: MockState) => {
        const place = { project: env.SESSIONSTORE_PROJECT, environment: env.SESSIONSTORE_ENVIRONMENT, ...query };
        const params = Object.fromEntries(Object.entries(place).flatMap(([name, value]) => (value ? [[name, value]] : [])));
        const answer = await gateway.fetch(`/api/v1/sessions/${path}`, { method, params, data, maxRetries: 2 });
        if (!answer.ok()) throw new Error(`The gateway answered ${answer.status()}: ${await answer.text()}`);
      };
      // An hour: what an interrupted run leaves behind goes by itself.
      const label = info.titlePath.join(" > ").slice(0, 200);
      await call("PUT", key, { mode: "replace" }, { label, ttlSeconds: 3600, ...mocks });
      // By route, because extraHTTPHeaders would send the header to every origin. A redirect carries it along.
      const origins = mockOrigins.map((url) => new URL(url).origin);
      await context.route((url) => origins.includes(url.origin), (route, request) =>
        route.fallback({ headers: { ...request.headers(), "x-flowmock-session": key } }),
      );
      await use({
        key,
        put: (state) => call("PUT", key, {}, state),
        on: (override) => call("POST", `${key}/overrides/${override}`, {}),
        off: (override) => call("DELETE", `${key}/overrides/${override}`, {}),
      });
      await call("DELETE", key, { mode: "delete" });
      await gateway.dispose();
    },
    { auto: true },
  ],
});
export { expect } from "@playwright/test";
