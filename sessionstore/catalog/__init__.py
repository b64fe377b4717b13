"""What an environment offers: its mocks and scenarios, and the document that declares them."""
