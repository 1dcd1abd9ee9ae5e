"""Recording demonstrations: scripted experts or a policy, into a dataset."""
