//! The control plane: HTTP health and metrics, dead-letter writer.
