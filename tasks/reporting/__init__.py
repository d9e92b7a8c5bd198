"""What people look at: the report, its tables and its plots."""
