"""Files of strangers, sent to a live service, and every answer judged by programs that are not ours."""
