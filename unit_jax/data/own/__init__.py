"""Data sets of one's own, as `config.data.own` declares them: from files to prepared data.

declared -> classes, images, records -> prepare   (notes, report, vocabulary, stale beside)
"""
