"""BFCL, the Berkeley Function Calling Leaderboard, through the package `bfcl-eval` itself.

install.py puts a version into a folder of its own, worker/ is the process that imports it, client.py speaks to that process;
results.py reads result files, styles.py tells how a model wrote its calls, score.py scores, table.py groups categories.
"""
