"""The paper's supervised half: classifiers whose attention is supervised with segmentation masks."""
