x = 1
def app(:
