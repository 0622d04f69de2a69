FROM python:3.12
COPY . /study
RUN cd /study && make venv
