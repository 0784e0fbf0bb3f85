"""The study: real models on real data, several optimizers under the same conditions, and a report."""
