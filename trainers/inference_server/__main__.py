import sys

from online_sft.launching import one_line_errors
from trainers.inference_server.serving import main

with one_line_errors("online-sft serve"):
    main(sys.argv[1:])
