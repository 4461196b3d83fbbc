"""What one step of training sees: rows, the teacher's evidence of them, batches."""
