"""What a fork server imports, and no other process: it and its children end with their parent, not by signals.

A cluster sends its signals to all processes of a job. The main process answers them; were the fork server to end, its
children would go with it in the middle of their work.
"""

from robolearn.system.termination import ignore_termination

ignore_termination()
