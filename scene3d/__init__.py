"""Pictures with poses -> one labeled surface in metres, and its floor plan."""
