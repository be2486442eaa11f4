"""Results that machines share: data by DVC's remote, the record by git."""
