"""The models of a run: what each call costs, what is cached, and the requests that go to model handlers."""
