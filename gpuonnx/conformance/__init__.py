"""The official ONNX backend test suite: `suite` has its cases, `runner` runs them in processes that may crash or hang."""
