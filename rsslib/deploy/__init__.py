"""Take a trained supernet to an application: search under a budget, export, latency, predictions."""
