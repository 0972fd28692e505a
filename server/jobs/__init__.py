"""Jobs: work that outlives its connection, kept in a store, one by one or in batches."""
