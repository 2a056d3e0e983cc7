"""From a folder of images to a space file for it and for this machine."""

from cvt_nas.init.begin import Beginning, begin
