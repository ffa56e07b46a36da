"""The rungs of the audit's ladder, one module each: every rung tries to show that the claim is false."""
