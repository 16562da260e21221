"""Parts of the web page of app.py: charts, and which requests are answered."""
