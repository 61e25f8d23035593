"""Lazy reasoning (D-CORE section 2.3 and appendix A.2.2) in stored outputs of BFCL and in rollouts of RL.

thoughts.py reads them, tokens.py counts tokens, behaviours.py tells four behaviours apart, measure.py makes ratios, figures.py
draws the paper's figures, page.py puts them on a page.
"""
