"""One set of weights for every architecture of a space.

A subnet's weights are cuts of the supernet's: the first channels, hidden units and blocks, and the centre of each
kernel and grid of positions. Strides and the number of heads have no weights. The forward pass of a subnet is that of
the plain `CvT`, with the cuts in place of its own weights, so that the two cannot differ.

Sources: Yu et al. 2020, arXiv:2003.11142, one set of weights that is trained at every size at once; Chen et al. 2021,
arXiv:2107.00651, shared so between transformers.
"""

from cvt_nas.supernet.lending import begin_supernet, lend_to
from cvt_nas.supernet.shared import Supernet, extract
