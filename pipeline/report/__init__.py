"""What people look at: tables, charts, pictures, the report, the model card."""
