"""The catalog of an environment: its mocks and scenarios, and the document that declares them."""
