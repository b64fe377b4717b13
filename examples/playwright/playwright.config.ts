import { defineConfig } from "@playwright/test";

// CHROMIUM: the path of an installed browser, where Playwright's own is not.
const { CHROMIUM } = process.env;

export default defineConfig({
  use: { launchOptions: CHROMIUM ? { executablePath: CHROMIUM, args: ["--no-sandbox"] } : {} },
});
