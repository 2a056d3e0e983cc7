"""The accuracy of a trained network, whatever trained it, on the test images of a data set."""

from cvt_nas.evaluate.accuracy import evaluate_model
