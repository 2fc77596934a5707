#!/usr/bin/env python3
"""Count the labels of a training set, for the class-weighted losses of `train.py`.

    python class_weights.py --data-dir FOLDER --output stats.json
    python train.py --data-dir FOLDER --num-classes 10 --class-stats stats.json --bce-loss --loss-pos-weight neg_pos
"""
from training.class_counts import main

if __name__ == '__main__':
    main()
