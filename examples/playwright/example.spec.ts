import { expect, test } from "./mock-session";

const proxy = process.env.PROXY_URL ?? "http://localhost:8081";
test.use({ mockOrigins: [new URL(proxy).origin], mocks: { scenario: "scn_paymentDeclined" } });

test("the card is declined", async ({ page }) => {
  const response = await page.goto(`${proxy}/pay`);
  expect(response?.status()).toBe(402);
});

test("the mocks change during a test", async ({ mockSession, page }) => {
  await mockSession.put({ scenario: null });
  expect((await page.goto(`${proxy}/pay`))?.status()).toBe(200);

  await mockSession.put({ scenario: "scn_paymentDeclined" });
  expect((await page.goto(`${proxy}/pay`))?.status()).toBe(402);
});
