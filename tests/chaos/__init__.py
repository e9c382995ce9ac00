"""The soak: a service under seeded disturbance, and the checks that it lost, doubled and changed nothing.

``python -m tests.chaos.soak --seed 0 --jobs 200``. Uses the service as callers and operators do, and looks into its
database and folders only to check. No test logic of other floors enters here.
"""
