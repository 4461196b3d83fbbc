"""Teachers that only list their likeliest tokens: a server, an engine that is not ours."""
