"""One set of weights for all architectures of a space.

The weights of a subnet are cuts of the weights of the supernet: the first channels, hidden units and blocks, and the
centre of each kernel and grid of positions. Strides and the number of heads have no weights. A subnet runs the forward
pass of the plain `CvT` with cuts in place of own weights, so that the two cannot differ.

Sources: Yu et al. 2020, arXiv:2003.11142, for one set of weights that is trained at all sizes at once; Chen et al.
2021, arXiv:2107.00651, for weights shared in this way between transformers.
"""

from cvt_nas.supernet.lending import begin_supernet, lend_to
from cvt_nas.supernet.shared import Supernet, extract
