"""batches -> task -> checkpoint: losses, one task per model, the Accelerate loop, and Ray Train around it."""
