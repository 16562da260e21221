"""Parts of the web page of app.py: answers to pictures and clicks, charts, tables, and which requests are answered."""
